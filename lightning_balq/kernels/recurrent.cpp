// Steps of an LSTM on the CPU: what follows and precedes the product with the recurrent weight, in one call each way.
//
// Exponentials are computed here, in vectors, within two units in the last place.
//
// C interface, see cpu.py.

// Nothing here has to round as PyTorch does, and a fused multiply-add is faster.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

constexpr int LANES = 8;
constexpr int64_t GRAIN = 32768;  // hidden values from which a second thread is worth waiting for
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

inline Floats all(float value) { return value - Floats{}; }

inline Floats choose(Ints mask, Floats yes, Floats no) {
  return reinterpret_cast<Floats>((reinterpret_cast<Ints>(yes) & mask) | (reinterpret_cast<Ints>(no) & ~mask));
}

inline Floats magnitude(Floats x) { return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7fffffff); }

inline Floats with_sign_of(Floats sign, Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) | (reinterpret_cast<Ints>(sign) & INT32_MIN));
}

// e^x = 2^n e^r with |r| <= ln(2) / 2 and a polynomial for e^r (Moshier's Cephes library, expf). NaN stays NaN.
inline Floats exponential(Floats x) {
  x = choose(x > 88.0f, all(88.0f), x);
  x = choose(x < -87.0f, all(-87.0f), x);
  Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Floats n = shifted - 12582912.0f;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return (p * r * r + r + 1.0f) * reinterpret_cast<Floats>(power);
}

inline Floats sigmoid(Floats x) {
  Floats e = exponential(-magnitude(x));  // at most 1
  return choose(x < 0.0f, e, all(1.0f)) / (1.0f + e);
}

// Near zero a polynomial (Cephes, tanhf): the quotient would lose digits.
inline Floats hyperbolic_tangent(Floats x) {
  Floats z = magnitude(x), square = x * x;
  Floats p = all(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  Floats far = with_sign_of(x, 1.0f - 2.0f / (exponential(2.0f * z) + 1.0f));
  return choose(z < 0.625f, p * square * x + x, far);
}

// The number of lanes is a type where it is known when compiled.
typedef std::integral_constant<int, LANES> Full;

template <class Count>
inline Floats load(const float* at, Count lanes) {
  Floats values = {};
  std::memcpy(&values, at, lanes * sizeof(float));
  return values;
}

template <class Count>
inline void store(Floats values, float* at, Count lanes) { std::memcpy(at, &values, lanes * sizeof(float)); }

// Call work(first column, number of columns) for a row.
template <class Work>
inline void for_columns(int64_t width, Work work) {
  int64_t at = 0;
  for (; at + LANES <= width; at += LANES) work(at, Full());
  if (at < width) work(at, static_cast<int>(width - at));
}

}  // namespace

// Levels of a hidden state; `share` says how much of it is quantized, the rest being float.
struct State {
  int32_t bits;
  float range;
  float share;
  uint8_t is_signed;
};

extern "C" {

int balq_activation(const float* values, int64_t count, int bits, const float* range, const uint8_t* is_signed,
                    float spread, int threads, float* levels, uint8_t* mask, float* seen);

// One step forward. `gates` holds the recurrent products of each row (input, forget, candidate, output; each of
// `width` values) and gets the gates; `cell` holds the cell state and gets the new one; `before`, `bounded`, `raw`,
// `states` and `hidden` get the old cell state, the hyperbolic tangent of the new one, the hidden state, and that
// quantized, twice. Everything is contiguous.
int balq_lstm_forward(const float* projected, float* gates, float* before, float* bounded, float* raw, float* states,
                      float* hidden, float* cell, int64_t rows, int64_t width, int threads, const State* state) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows * width > GRAIN)
  for (int64_t row = 0; row < rows; ++row) {
    const float* p = projected + 4 * row * width;
    float* g = gates + 4 * row * width;
    int64_t start = row * width;
    for_columns(width, [&](int64_t at, auto lanes) {
      auto sum = [&](int gate) { return load(p + gate * width + at, lanes) + load(g + gate * width + at, lanes); };
      Floats entry = sigmoid(sum(0)), forget = sigmoid(sum(1));
      Floats candidate = hyperbolic_tangent(sum(2)), exit = sigmoid(sum(3));
      Floats old = load(cell + start + at, lanes);
      Floats now = forget * old + entry * candidate;
      Floats limited = hyperbolic_tangent(now);
      store(entry, g + at, lanes);
      store(forget, g + width + at, lanes);
      store(candidate, g + 2 * width + at, lanes);
      store(exit, g + 3 * width + at, lanes);
      store(old, before + start + at, lanes);
      store(now, cell + start + at, lanes);
      store(limited, bounded + start + at, lanes);
      store(exit * limited, raw + start + at, lanes);
    });
  }
  int64_t count = rows * width;
  int status = balq_activation(raw, count, state->bits, &state->range, &state->is_signed, 0.0f, threads, states,
                               nullptr, nullptr);
  if (state->share < 1.0f) {
    for (int64_t at = 0; at < count; ++at) states[at] = raw[at] * (1.0f - state->share) + states[at] * state->share;
  }
  std::memcpy(hidden, states, sizeof(float) * count);
  return status;
}

// One step back. `by_states` and `by_hidden` are the gradients of the quantized hidden state as the layer returns it
// and as the next step uses it; `by_cell` holds the gradient of the new cell state and gets that of the old one;
// `by_gates` gets the gradient of the products; the others are as the step forward left them.
void balq_lstm_backward(const float* gates, const float* before, const float* bounded, const float* raw,
                        const float* by_states, float* by_gates, const float* by_hidden, float* by_cell, int64_t rows,
                        int64_t width, int threads, const State* state) {
  const float lowest = state->is_signed ? -state->range : 0.0f;
  const Floats outside = all(1.0f - state->share);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows * width > GRAIN)
  for (int64_t row = 0; row < rows; ++row) {
    const float* g = gates + 4 * row * width;
    float* to = by_gates + 4 * row * width;
    int64_t start = row * width;
    for_columns(width, [&](int64_t at, auto lanes) {
      Floats entry = load(g + at, lanes), forget = load(g + width + at, lanes);
      Floats candidate = load(g + 2 * width + at, lanes), exit = load(g + 3 * width + at, lanes);
      Floats limited = load(bounded + start + at, lanes), value = load(raw + start + at, lanes);
      Floats passed = choose((value >= lowest) & (value <= state->range), all(1.0f), outside);
      Floats hidden = (load(by_hidden + start + at, lanes) + load(by_states + start + at, lanes)) * passed;
      Floats now = load(by_cell + start + at, lanes) + hidden * exit * (1.0f - limited * limited);
      store(now * candidate * entry * (1.0f - entry), to + at, lanes);
      store(now * load(before + start + at, lanes) * forget * (1.0f - forget), to + width + at, lanes);
      store(now * entry * (1.0f - candidate * candidate), to + 2 * width + at, lanes);
      store(hidden * limited * exit * (1.0f - exit), to + 3 * width + at, lanes);
      store(now * forget, by_cell + start + at, lanes);
    });
  }
}

}  // extern "C"
