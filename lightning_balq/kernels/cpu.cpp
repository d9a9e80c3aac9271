// Quantizers for the CPU: the results of lightning_balq.functional, in few passes over the values.
//
// A row is what has statistics of its own: a whole weight, or one output channel. Three ideas make it fast:
//
//  * Few bins (means, up to 4 bits): one pass a level. For every threshold t it sums and counts the values >= t;
//    differences give the bins, whose means are the thresholds of the next level.
//  * Many bins, and medians: one pass sorts values into cells by the leading bits of their representation, so that
//    the recursion runs on counts and sums of cells. Only in a cell that holds a threshold, values are looked at.
//  * The last pass counts the thresholds below each value and writes its level.
//
// Sums do not depend on the number of threads: they are formed over pieces of fixed size and added up in order.
//
// C interface, see cpu.py. Compiled with -ffp-contract=off: a fused multiply-add would round differently from PyTorch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr int LANES = 8;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float HalfFloats __attribute__((vector_size(2 * LANES)));
typedef double Doubles __attribute__((vector_size(4 * LANES)));

constexpr int64_t CHUNK = 8192;    // values of a piece whose sums are formed together
constexpr int MAX_BITS = 8;
constexpr int MAX_BINS = 1 << MAX_BITS;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

enum Center { MEAN = 0, MEDIAN = 1 };
enum Scale { SCALE_MAX = 0, SCALE_MEAN = 1, SCALE_LEAST_SQUARES = 2, SCALE_UNIT = 3 };
enum Status { DONE = 0, NOT_FINITE = 1, NO_MEMORY = 2 };

inline Floats load(const float* at) {
  Floats values;
  std::memcpy(&values, at, sizeof values);
  return values;
}

inline Floats all(float value) { return value - Floats{}; }

inline Doubles lower(Floats x) {
  HalfFloats half;
  std::memcpy(&half, &x, sizeof half);
  return __builtin_convertvector(half, Doubles);
}

inline Doubles upper(Floats x) {
  HalfFloats half;
  std::memcpy(&half, reinterpret_cast<const char*>(&x) + sizeof half, sizeof half);
  return __builtin_convertvector(half, Doubles);
}

inline double total(Doubles x) { return (x[0] + x[1]) + (x[2] + x[3]); }

inline int64_t total(Ints x) {
  int64_t sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
  return sum;
}

inline Floats where(Ints mask, Floats values) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(values) & mask);
}

// Run work(vector, number of valid lanes) over all values; lanes beyond the end hold `fill`.
template <class Work>
inline void for_vectors(const float* values, int64_t count, float fill, Work work) {
  int64_t at = 0;
  for (; at + LANES <= count; at += LANES) work(load(values + at), at, LANES);
  if (at < count) {
    float rest[LANES];
    for (int lane = 0; lane < LANES; ++lane) rest[lane] = at + lane < count ? values[at + lane] : fill;
    work(load(rest), at, static_cast<int>(count - at));
  }
}

inline int64_t chunks(int64_t count) { return (count + CHUNK - 1) / CHUNK; }

inline int64_t chunk_size(int64_t index, int64_t count) { return std::min(CHUNK, count - index * CHUNK); }

// ---- statistics of a row ---------------------------------------------------------------------------------------

struct Summary {
  float largest = 0;       // largest magnitude
  double sum = 0;
  double magnitude = 0;    // sum of magnitudes
  bool finite = true;
};

// Sums are left out where nothing needs them.
template <bool WITH_SUM, bool WITH_MAGNITUDE>
Summary summarize(const float* values, int64_t count) {
  Ints largest = {};
  Doubles sum[2] = {}, magnitude[2] = {};
  for_vectors(values, count, 0.0f, [&](Floats x, int64_t, int) {
    Ints bits = reinterpret_cast<Ints>(x) & 0x7fffffff;  // magnitudes order like these integers, NaN above infinity
    largest = bits > largest ? bits : largest;
    if constexpr (WITH_SUM) {
      sum[0] += lower(x);
      sum[1] += upper(x);
    }
    if constexpr (WITH_MAGNITUDE) {
      magnitude[0] += lower(reinterpret_cast<Floats>(bits));
      magnitude[1] += upper(reinterpret_cast<Floats>(bits));
    }
  });
  int32_t top = 0;
  for (int lane = 0; lane < LANES; ++lane) top = std::max(top, largest[lane]);
  Summary summary;
  std::memcpy(&summary.largest, &top, sizeof top);
  summary.sum = total(sum[0] + sum[1]);
  summary.magnitude = total(magnitude[0] + magnitude[1]);
  summary.finite = top < 0x7f800000;
  return summary;
}

Summary summarize(const float* values, int64_t count, bool with_sum, bool with_magnitude, int threads) {
  auto work = with_sum ? (with_magnitude ? summarize<true, true> : summarize<true, false>)
                       : (with_magnitude ? summarize<false, true> : summarize<false, false>);
  std::vector<Summary> parts(chunks(count));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t part = 0; part < static_cast<int64_t>(parts.size()); ++part)
    parts[part] = work(values + part * CHUNK, chunk_size(part, count));
  Summary summary;
  for (const Summary& part : parts) {
    summary.largest = std::max(summary.largest, part.largest);
    summary.sum += part.sum;
    summary.magnitude += part.magnitude;
    summary.finite = summary.finite && part.finite;
  }
  return summary;
}

// ---- thresholds: the recursive partition -------------------------------------------------------------------------

// Thresholds of a partition into 2^level bins, ascending, growing a level at a time.
struct Partition {
  float thresholds[MAX_BINS];  // 2^level - 1 of them, and +infinity
  int level = 0;

  int count() const { return (1 << level) - 1; }

  // Split bin j at centers[j]; a bin that has none (NaN) keeps the threshold of its parent.
  void split(const float* centers) {
    float next[MAX_BINS];
    int bins = 1 << level;
    for (int bin = 0; bin < bins; ++bin) {
      // Bins 2i and 2i + 1 come from the parent split at thresholds[2i].
      float inherited = level ? thresholds[bin & ~1] : 0.0f;
      next[2 * bin] = std::isnan(centers[bin]) ? inherited : centers[bin];
      if (bin + 1 < bins) next[2 * bin + 1] = thresholds[bin];
    }
    ++level;
    std::copy(next, next + count(), thresholds);
    thresholds[count()] = INFINITE;
  }
};

// For T thresholds at once. A value is split into a leading part, a multiple of a power of two so large that
// sums of leading parts are exact in float32, and the remainder, 2^-17 of the largest magnitude or less. Sums over
// `RUN` values are added up in float64, so the error of a mean is below 2^-35 of the largest magnitude.
constexpr int64_t RUN = 64 * LANES;

template <int T>
void add_tails(const float* values, int64_t count, Floats round, const float* thresholds, double* sums,
               int64_t* counts) {
  Floats leading[T] = {}, remainder[T] = {};
  Ints members[T] = {};
  // Lanes beyond the end are below every threshold.
  for_vectors(values, count, -INFINITE, [&](Floats x, int64_t, int) {
    Floats lead = (x + round) - round;
    Floats rest = x - lead;
    for (int t = 0; t < T; ++t) {
      Ints mask = x >= all(thresholds[t]);
      leading[t] += where(mask, lead);
      remainder[t] += where(mask, rest);
      members[t] -= mask;
    }
  });
  for (int t = 0; t < T; ++t) {
    sums[t] += total((lower(leading[t]) + upper(leading[t])) + (lower(remainder[t]) + upper(remainder[t])));
    counts[t] += total(members[t]);
  }
}

// Sums and counts of the values of a chunk at or above each threshold.
void tails(const float* values, int64_t count, const float* thresholds, int number, float largest, double* sums,
           int64_t* counts) {
  int exponent;
  std::frexp(largest, &exponent);
  const Floats round = all(std::ldexp(1.5f, exponent + 6));  // rounds to multiples of 2^(exponent - 17)
  auto add = number == 1 ? add_tails<1> : number == 2 ? add_tails<2> : add_tails<4>;
  std::fill(sums, sums + number, 0.0);
  std::fill(counts, counts + number, 0);
  for (int64_t run = 0; run < count; run += RUN)
    add(values + run, std::min(RUN, count - run), round, thresholds, sums, counts);
}

constexpr int PASS_BITS = 4;  // widest code whose bins are summed by comparing with every threshold

// The splitting of values into two parts needs room above and below in the exponent.
bool is_ordinary(float largest) { return largest < 0x1p100f && largest > 0x1p-90f; }

void partition_by_passes(const float* values, int64_t count, int bits, const Summary& summary, int threads,
                         Partition& partition) {
  constexpr int MOST = 1 << (PASS_BITS - 2);  // thresholds of a level that are new
  struct Part {
    double sums[MOST];
    int64_t counts[MOST];
  };
  std::vector<Part> parts(chunks(count));
  // Sum and number of the values at or above threshold j - 1; all values come first.
  std::vector<double> sums = {summary.sum, 0.0};
  std::vector<int64_t> counts = {count, 0};
  for (;;) {
    float centers[1 << (PASS_BITS - 1)];
    int bins = 1 << partition.level;
    for (int bin = 0; bin < bins; ++bin) {
      int64_t members = counts[bin] - counts[bin + 1];
      centers[bin] = members ? static_cast<float>((sums[bin] - sums[bin + 1]) / static_cast<double>(members)) : NAN;
    }
    partition.split(centers);
    if (partition.level == bits) return;
    // Thresholds 0, 2, 4, .. are new, those between have been summed.
    float fresh[MOST];
    for (int bin = 0; bin < bins; ++bin) fresh[bin] = partition.thresholds[2 * bin];
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t part = 0; part < static_cast<int64_t>(parts.size()); ++part)
      tails(values + part * CHUNK, chunk_size(part, count), fresh, bins, summary.largest, parts[part].sums,
            parts[part].counts);
    std::vector<double> next_sums(2 * bins + 1, 0.0);
    std::vector<int64_t> next_counts(2 * bins + 1, 0);
    for (int bin = 0; bin <= bins; ++bin) {
      next_sums[2 * bin] = sums[bin];
      next_counts[2 * bin] = counts[bin];
    }
    for (const Part& part : parts)
      for (int bin = 0; bin < bins; ++bin) {
        next_sums[2 * bin + 1] += part.sums[bin];
        next_counts[2 * bin + 1] += part.counts[bin];
      }
    sums = next_sums;
    counts = next_counts;
  }
}

// ---- cells -------------------------------------------------------------------------------------------------------

// Cells by the leading bits of a magnitude, 16 octaves below the largest; what is smaller shares a cell for each sign.
// A cell lies within one octave, so that a value in it is edge + rest * unit, with an integer rest.
struct Cells {
  int shift;
  int32_t lowest, half;  // smallest magnitude that is told apart; cells of one sign

  Cells(float largest, int64_t count, int most_digits) {
    int digits = 0;  // leading bits of the mantissa: so many that cells hold few values, but not too few
    while (digits < most_digits && (int64_t{1} << (digits + 9)) < count) ++digits;
    shift = 23 - digits;
    int32_t top;
    std::memcpy(&top, &largest, sizeof top);
    lowest = std::max((top >> shift << shift) - (16 << 23), 0);
    half = ((top - lowest) >> shift) + 1;
  }

  int count() const { return 2 * half; }

  void place(Floats x, Ints& key, Ints& rest) const {
    Ints bits = reinterpret_cast<Ints>(x + 0.0f);  // -0 becomes 0
    Ints size = (bits & 0x7fffffff) - lowest;
    size = size > 0 ? size : Ints{};
    rest = size & ((1 << shift) - 1);
    size >>= shift;
    key = bits < 0 ? (half - 1) - size : half + size;
  }

  int key(float value) const {
    Ints key, rest;
    place(all(value), key, rest);
    return std::min(std::max(key[0], 0), count() - 1);  // a guess may lie beyond all values
  }

  int32_t index(int key) const { return key >= half ? key - half : half - 1 - key; }  // by magnitude
  double sign(int key) const { return key >= half ? 1.0 : -1.0; }
  double edge(int32_t index) const {  // least magnitude
    if (index == 0) return 0.0;
    int32_t bits = std::min(lowest + (index << shift), 0x7f7fffff);  // at most the largest finite number
    float value;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
  }
  double unit(int32_t index) const {
    int64_t exponent = std::max((lowest + (index << shift)) >> 23, 1);
    int64_t bits = (exponent - 150 + 1023) << 52;  // 2^(exponent - 150)
    double value;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
  }
};

// A row sorted into cells. Values of a cell are at hand once it was collected; until then they are taken to be spread
// evenly over it. With `few` thresholds, the values of the few cells that hold one are found by comparison, and codes
// are left to be found so too.
class CellTable {
 public:
  CellTable(const float* values, int64_t count, float largest, bool few, int threads)
      : values_(values),
        count_(count),
        slices_(std::max(int64_t{threads}, (count >> 24) + 1)),  // whose sums of rests fit into an entry
        threads_(threads),
        few_(few),
        cells_(largest, count, few ? 7 : 10),
        entries_(slices_ * cells_.count(), 0) {
    int size = cells_.count();
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t slice = 0; slice < slices_; ++slice) {
      uint64_t* entries = entries_.data() + slice * size;
      for_keys(values + begin(slice), length(slice), [&](const int32_t* keys, const int32_t* rests, int64_t, int size) {
        for (int at = 0; at < size; ++at) entries[keys[at]] += ONE | static_cast<uint64_t>(rests[at]);
      });
    }
    first_.assign(size + 1, 0);
    sums_.assign(size, 0.0);
    for (int key = 0; key < size; ++key) {
      uint64_t rests = 0;
      int64_t members = 0;
      for (int64_t slice = 0; slice < slices_; ++slice) {
        rests += entries_[slice * size + key] & (ONE - 1);
        members += members_in(slice, key);
      }
      int32_t index = cells_.index(key);
      sums_[key] = cells_.sign(key) * (static_cast<double>(members) * cells_.edge(index) +
                                       static_cast<double>(rests) * cells_.unit(index));
      first_[key + 1] = first_[key] + members;
    }
    place_.assign(size, UNKNOWN);
    accumulate();
  }

  int64_t count() const { return count_; }
  const Cells& cells() const { return cells_; }
  int64_t members(int key) const { return first_[key + 1] - first_[key]; }
  int64_t first(int key) const { return first_[key]; }  // number of values in lower cells
  double sum_before(int key) const { return before_[key]; }

  // Note that the values of a cell are needed; true if they are at hand.
  bool want(int key) {
    if (place_[key] >= 0 || members(key) == 0) return true;
    if (place_[key] == UNKNOWN) {
      place_[key] = WANTED;
      complete_ = false;
    }
    return false;
  }

  // Want the cells whose sums are not known before.
  void want_small() {
    want(cells_.half - 1);
    want(cells_.half);
  }

  void want_all() {
    for (int key = 0; key < cells_.count(); ++key) want(key);
  }

  // Want the cell of a threshold that is a guess, and the cells to which it may move. A guess is off by a part of a
  // cell that holds many values, and by a few values where cells hold few.
  void want_around(float threshold) {
    constexpr int64_t FEW = 48;
    constexpr int REACH = 64;
    int key = cells_.key(threshold);
    if (want(key) && members(key) >= FEW) return;
    double share = share_below(key, threshold);
    for (int step : {-1, 1}) {
      int64_t passed = members(key) >= FEW && (step < 0 ? share > 0.1 : share < 0.9) ? FEW : 0;
      int end = step < 0 ? std::max(key - REACH, 0) - 1 : std::min(key + REACH, cells_.count() - 1) + 1;
      for (int at = key + step; passed < FEW && at != end; at += step) {
        want(at);
        passed += members(at);
      }
    }
  }

  bool complete() const { return complete_; }

  // Write the codes of all values whose cell holds no threshold, and collect the values of the cells that are wanted.
  void collect(const Partition& partition, uint8_t* codes) {
    int size = cells_.count();
    bases_ = bases(partition);
    std::vector<uint16_t> actions(size);
    std::vector<int64_t> next(slices_ * size), listed(slices_, 0);
    int64_t place = 0;
    for (int key = 0; key < size; ++key) {
      bool wanted = place_[key] != UNKNOWN;
      actions[key] = static_cast<uint16_t>(bases_[key] | wanted << 8);
      if (!wanted) continue;
      place_[key] = place;
      for (int64_t slice = 0; slice < slices_; ++slice) {
        next[slice * size + key] = place;
        place += members_in(slice, key);
        listed[slice] += members_in(slice, key);
      }
    }
    complete_ = true;
    const std::vector<Range> ranges = few_ ? wanted_ranges() : std::vector<Range>();
    collected_.resize(place);
    lists_.resize(slices_);
#pragma omp parallel for num_threads(threads_) schedule(static) if (threads_ > 1)
    for (int64_t slice = 0; slice < slices_; ++slice) {
      const float* values = values_ + begin(slice);
      std::vector<Listed>& list = lists_[slice];
      list.resize(listed[slice]);
      if (few_)
        list_in(ranges, values, length(slice), list.data());
      else
        code_and_list(values, length(slice), actions.data(), codes + begin(slice), list.data());
      int64_t* places = next.data() + slice * size;
      for (const Listed& item : list) collected_[places[item.key]++] = values[item.at];
    }
    for (int key : {cells_.half - 1, cells_.half})  // values too small to be told apart have no common unit
      if (place_[key] >= 0) {
        int64_t above;
        tail(collected_.data() + place_[key], members(key), -INFINITE, sums_[key], above);
      }
    accumulate();
  }

  // Complete the codes, given the thresholds.
  void finish(const Partition& partition, uint8_t* codes) {
    if (few_) return;
    std::vector<uint8_t> final = bases(partition);
    for (int key = 0; key < cells_.count(); ++key)
      if (place_[key] == UNKNOWN && members(key) && final[key] != bases_[key]) {
        collect(partition, codes);  // a threshold moved past a cell that was not wanted
        break;
      }
#pragma omp parallel for num_threads(threads_) schedule(static) if (threads_ > 1)
    for (int64_t slice = 0; slice < slices_; ++slice) {
      code_listed(values_ + begin(slice), lists_[slice], final.data(), partition.thresholds, codes + begin(slice));
    }
  }

  struct Below {
    double sum, count;
  };

  // Sum and number of the values of a cell that are below a threshold in it.
  Below below(int key, float threshold) {
    double members = static_cast<double>(this->members(key));
    if (members == 0) return {0, 0};
    if (!want(key)) {
      double share = share_below(key, threshold);
      double width = cells_.edge(cells_.index(key) + 1) - cells_.edge(cells_.index(key));
      return {share * (sums_[key] - members * (1 - share) * width / 2), share * members};
    }
    double sum;
    int64_t above;
    tail(collected_.data() + place_[key], this->members(key), threshold, sum, above);
    return {sums_[key] - sum, members - static_cast<double>(above)};
  }

  // Value of a rank in the ordered row; a guess if it is not at hand, which `exact` then says.
  double ranked(int64_t rank, bool& exact) {
    int key = static_cast<int>(std::upper_bound(first_.begin(), first_.end(), rank) - first_.begin()) - 1;
    int64_t within = rank - first_[key];
    if (!want(key)) {
      exact = false;
      double share = (static_cast<double>(within) + 0.5) / static_cast<double>(members(key));
      double low = cells_.edge(cells_.index(key)), high = cells_.edge(cells_.index(key) + 1);
      return key >= cells_.half ? low + share * (high - low) : -(high - share * (high - low));
    }
    float* own = collected_.data() + place_[key];
    std::nth_element(own, own + within, own + members(key));
    return own[within];
  }

 private:
  struct Listed {
    uint32_t at;
    uint32_t key;
  };

  static constexpr uint64_t ONE = uint64_t{1} << 40;  // an entry: members in the upper 24 bits, sum of rests below
  static constexpr int BLOCK = 256;
  static constexpr int64_t UNKNOWN = -1, WANTED = -2;

  void accumulate() {
    before_.assign(sums_.size() + 1, 0.0);
    for (size_t key = 0; key < sums_.size(); ++key) before_[key + 1] = before_[key] + sums_[key];
  }

  double share_below(int key, float threshold) const {
    double low = cells_.edge(cells_.index(key)), high = cells_.edge(cells_.index(key) + 1);
    double share = std::min(std::max((std::fabs(threshold) - low) / (high - low), 0.0), 1.0);
    return key >= cells_.half ? share : 1.0 - share;
  }

  // Sum and number of the values at or above a threshold.
  static void tail(const float* values, int64_t count, float threshold, double& sum, int64_t& above) {
    Doubles wide[2] = {};
    Ints members = {};
    for_vectors(values, count, -INFINITE, [&](Floats x, int64_t, int lanes) {
      Ints mask = x >= all(threshold);
      for (int lane = lanes; lane < LANES; ++lane) mask[lane] = 0;
      Floats kept = where(mask, x);
      wide[0] += lower(kept);
      wide[1] += upper(kept);
      members -= mask;
    });
    sum = total(wide[0] + wide[1]);
    above = total(members);
  }

  // Run work(keys, rests, index of the first, number) over blocks of values.
  template <class Work>
  void for_keys(const float* values, int64_t count, Work work) const {
    const Cells cells = cells_;
    alignas(32) int32_t keys[BLOCK], rests[BLOCK];
    for (int64_t first = 0; first < count; first += BLOCK) {
      int size = static_cast<int>(std::min<int64_t>(BLOCK, count - first));
      for_vectors(values + first, size, 0.0f, [&](Floats x, int64_t at, int) {
        Ints key, rest;
        cells.place(x, key, rest);
        std::memcpy(keys + at, &key, sizeof key);
        std::memcpy(rests + at, &rest, sizeof rest);
      });
      work(keys, rests, first, size);
    }
  }

  // The two loops that take most of the time: no branch that depends on a value, and no aliasing of bytes.
  void code_and_list(const float* values, int64_t count, const uint16_t* actions, uint8_t* codes, Listed* list) const {
    for_keys(values, count, [&](const int32_t* keys, const int32_t*, int64_t first, int size) {
      list += code_block(keys, size, actions, static_cast<uint32_t>(first), codes + first, list);
    });
  }

  struct Range {
    float low, high;
  };

  // Intervals that hold the values of the wanted cells, each of neighbouring cells.
  std::vector<Range> wanted_ranges() const {
    std::vector<Range> ranges;
    bool open = false;
    for (int key = 0; key < cells_.count(); ++key) {
      if (place_[key] == UNKNOWN) {
        open = false;
        continue;
      }
      bool positive = key >= cells_.half;
      int32_t index = cells_.index(key);
      float low = static_cast<float>(positive ? cells_.edge(index) : -cells_.edge(index + 1));
      float high = static_cast<float>(positive ? cells_.edge(index + 1) : -cells_.edge(index));
      if (!open) ranges.push_back({low, high});
      ranges.back().high = high;
      open = true;
    }
    return ranges;
  }

  void list_in(const std::vector<Range>& ranges, const float* values, int64_t count, Listed* list) const {
    for_vectors(values, count, INFINITE, [&](Floats x, int64_t at, int lanes) {
      Ints inside = {};
      for (const Range& range : ranges) inside |= (x >= all(range.low)) & (x <= all(range.high));
      int64_t parts[4];
      std::memcpy(parts, &inside, sizeof inside);
      if (!(parts[0] | parts[1] | parts[2] | parts[3])) return;
      for (int lane = 0; lane < lanes; ++lane) {
        int key = cells_.key(x[lane]);
        if (inside[lane] && place_[key] != UNKNOWN)
          *list++ = {static_cast<uint32_t>(at + lane), static_cast<uint32_t>(key)};
      }
    });
  }

  static int code_block(const int32_t* __restrict keys, int count, const uint16_t* __restrict actions, uint32_t first,
                        uint8_t* __restrict codes, Listed* __restrict list) {
    // One narrow store a value: two take twice as long.
    uint16_t found[BLOCK];
    alignas(8) uint8_t wanted[BLOCK] = {};
    for (int at = 0; at < count; ++at) found[at] = actions[keys[at]];
    for (int at = 0; at < count; ++at) codes[at] = static_cast<uint8_t>(found[at]);
    for (int at = 0; at < count; ++at) wanted[at] = static_cast<uint8_t>(found[at] >> 8);
    int listed = 0;
    for (int at = 0; at < count; at += 8) {
      uint64_t flags;
      std::memcpy(&flags, wanted + at, sizeof flags);
      while (flags) {  // bytes of 0 and 1
        int index = at + __builtin_ctzll(flags) / 8;
        list[listed++] = {first + static_cast<uint32_t>(index), static_cast<uint32_t>(keys[index])};
        flags &= flags - 1;
      }
    }
    return listed;
  }

  static void code_listed(const float* __restrict values, const std::vector<Listed>& list,
                          const uint8_t* __restrict bases, const float* __restrict thresholds,
                          uint8_t* __restrict codes) {
    for (const Listed& item : list) {
      float value = values[item.at];
      int code = bases[item.key];
      code += value >= thresholds[code];
      while (value >= thresholds[code]) ++code;  // seldom; the last threshold is infinite
      codes[item.at] = static_cast<uint8_t>(code);
    }
  }

  // Number of thresholds in lower cells, for each cell.
  std::vector<uint8_t> bases(const Partition& partition) const {
    std::vector<uint8_t> bases(cells_.count());
    int key = 0;
    for (int code = 0; code <= partition.count(); ++code) {
      int end = code < partition.count() ? cells_.key(partition.thresholds[code]) + 1 : cells_.count();
      for (; key < end; ++key) bases[key] = static_cast<uint8_t>(code);
    }
    return bases;
  }

  int64_t begin(int64_t slice) const { return count_ * slice / slices_; }
  int64_t length(int64_t slice) const { return begin(slice + 1) - begin(slice); }
  int64_t members_in(int64_t slice, int key) const {
    return static_cast<int64_t>(entries_[slice * cells_.count() + key] >> 40);
  }

  const float* values_;
  int64_t count_, slices_;
  int threads_;
  bool few_;
  Cells cells_;
  std::vector<uint64_t> entries_;     // of each slice and cell
  std::vector<int64_t> first_, place_;
  std::vector<double> sums_, before_;
  std::vector<uint8_t> bases_;
  std::vector<float> collected_;
  std::vector<std::vector<Listed>> lists_;  // where the collected values of a slice are
  bool complete_ = true;
};

// Sum and number of the values in each bin.
void bins_of(CellTable& table, const Partition& partition, double* sums, double* counts) {
  CellTable::Below last = {0, 0};
  for (int bin = 0; bin <= partition.count(); ++bin) {
    CellTable::Below next = {table.sum_before(table.cells().count()), static_cast<double>(table.count())};
    if (bin < partition.count()) {
      int key = table.cells().key(partition.thresholds[bin]);
      next = table.below(key, partition.thresholds[bin]);
      next.sum += table.sum_before(key);
      next.count += static_cast<double>(table.first(key));
    }
    sums[bin] = next.sum - last.sum;
    counts[bin] = next.count - last.count;
    last = next;
  }
}

void split_at_means(CellTable& table, Partition& partition) {
  double sums[MAX_BINS], counts[MAX_BINS];
  float centers[MAX_BINS];
  bins_of(table, partition, sums, counts);
  for (int bin = 0; bin <= partition.count(); ++bin)
    centers[bin] = counts[bin] > 0 ? static_cast<float>(sums[bin] / counts[bin]) : NAN;
  partition.split(centers);
}

// Bin j holds the ranks ends[j] .. ends[j + 1] - 1.
void split_at_medians(CellTable& table, Partition& partition, std::vector<int64_t>& ends) {
  float centers[MAX_BINS];
  std::vector<int64_t> next = {0};
  for (int bin = 0; bin <= partition.count(); ++bin) {
    int64_t start = ends[bin], stop = ends[bin + 1], middle = start;
    centers[bin] = NAN;
    if (stop > start) {
      bool exact = true;
      double high = table.ranked((start + stop) / 2, exact);
      double low = (stop - start) % 2 ? high : table.ranked((start + stop - 1) / 2, exact);
      centers[bin] = static_cast<float>((low + high) / 2);
      int key = table.cells().key(centers[bin]);
      middle = exact && table.want(key)
                   ? table.first(key) + static_cast<int64_t>(table.below(key, centers[bin]).count)
                   : (start + stop) / 2;
    }
    next.push_back(std::min(std::max(middle, start), stop));
    next.push_back(stop);
  }
  ends = next;
  partition.split(centers);
}

// Codes of a row of more bins than are worth comparing, or of medians.
void partition_by_cells(CellTable& table, int bits, Center center, Partition& partition, uint8_t* codes) {
  constexpr int64_t SHORT = 32768;  // values that are all collected at once, instead of guessing first
  auto split = [&] {
    partition = Partition();
    std::vector<int64_t> ends = {0, table.count()};
    while (partition.level < bits)
      if (center == MEAN)
        split_at_means(table, partition);
      else
        split_at_medians(table, partition, ends);
  };
  if (table.count() <= SHORT) {
    table.want_all();
  } else {
    if (center == MEAN) table.want_small();
    split();
    for (int t = 0; t < partition.count(); ++t) table.want_around(partition.thresholds[t]);
  }
  // A guess that was wrong makes another cell wanted: never more often than there are levels, and seldom at all.
  while (!table.complete()) {
    table.collect(partition, codes);
    split();
    for (int t = 0; t < partition.count(); ++t) table.want(table.cells().key(partition.thresholds[t]));
  }
  table.finish(partition, codes);
}

// ---- codes and levels --------------------------------------------------------------------------------------------

// Where the codes of a row go: as they are, or as levels scale * (2 code - largest).
struct Output {
  uint8_t* codes;
  float* levels;
  float scale;
};

inline void put(const Output& output, int64_t at, int lanes, Ints odd, int largest) {
  if (output.codes) {
    for (int lane = 0; lane < lanes; ++lane) output.codes[at + lane] = static_cast<uint8_t>((odd[lane] + largest) / 2);
  } else {
    Floats levels = __builtin_convertvector(odd, Floats) * output.scale;
    std::memcpy(output.levels + at, &levels, sizeof(float) * lanes);
  }
}

// Sums that make up the least-squares scale: <w, z> and <z, z>.
struct Fit {
  double product = 0, power = 0;
  float scale() const { return static_cast<float>(std::max(product / std::max(power, 1.0), 0.0)); }
};

struct FitSums {
  Doubles product = {};
  Ints power = {};
  void add(Floats x, Ints odd, int lanes) {
    if (lanes < LANES)
      for (int lane = lanes; lane < LANES; ++lane) odd[lane] = 0;
    Floats z = __builtin_convertvector(odd, Floats);
    product += lower(x) * lower(z);
    product += upper(x) * upper(z);
    power += odd * odd;  // at most 255^2 * 1024 vectors of a chunk
  }
  Fit fit() const { return {total(product), static_cast<double>(total(power))}; }
};

// Odd codes by comparing with all T thresholds.
template <int T>
struct ByComparison {
  Floats limits[T];
  explicit ByComparison(const Partition& partition) {
    for (int t = 0; t < T; ++t) limits[t] = all(partition.thresholds[t]);
  }
  Ints operator()(Floats x) const {
    Ints code = {};
    for (int t = 0; t < T; ++t) code -= x >= limits[t];
    return 2 * code - T;
  }
};

// Odd codes of the nearest levels.
struct ByRounding {
  Floats half_step;
  float largest;
  ByRounding(float scale, int bits)
      : half_step(all(std::max(scale, 0x1p-149f))), largest(static_cast<float>((1 << bits) - 1)) {}
  Ints operator()(Floats x) const {
    Floats place = (x / half_step + (largest - 1)) / 2;
    place = place < 0 ? Floats{} : place;
    place = place > largest ? all(largest) : place;
    Ints down = __builtin_convertvector(place, Ints);
    Ints code = down - (place > __builtin_convertvector(down, Floats));  // a comparison is -1 where true
    return 2 * code - static_cast<int32_t>(largest);
  }
};

// Code every value by `coder`, and write codes or levels, or only fit the scale to the codes.
template <class Coder>
void write(const float* values, int64_t count, const Coder& coder, int largest, const Output& output, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t part = 0; part < chunks(count); ++part) {
    int64_t offset = part * CHUNK;
    Output own = {output.codes ? output.codes + offset : nullptr, output.levels ? output.levels + offset : nullptr,
                  output.scale};
    for_vectors(values + offset, chunk_size(part, count), 0.0f,
                [&](Floats x, int64_t at, int lanes) { put(own, at, lanes, coder(x), largest); });
  }
}

template <class Coder>
Fit fit(const float* values, int64_t count, const Coder& coder, int threads) {
  std::vector<Fit> parts(chunks(count));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t part = 0; part < static_cast<int64_t>(parts.size()); ++part) {
    FitSums sums;
    for_vectors(values + part * CHUNK, chunk_size(part, count), 0.0f,
                [&](Floats x, int64_t, int lanes) { sums.add(x, coder(x), lanes); });
    parts[part] = sums.fit();
  }
  Fit all;
  for (const Fit& part : parts) {
    all.product += part.product;
    all.power += part.power;
  }
  return all;
}

void write_levels(const uint8_t* codes, int64_t count, int largest, float scale, float* levels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t part = 0; part < chunks(count); ++part) {
    const uint8_t* from = codes + part * CHUNK;
    float* to = levels + part * CHUNK;
    int64_t size = chunk_size(part, count);
    for (int64_t at = 0; at < size; ++at) to[at] = static_cast<float>(2 * from[at] - largest) * scale;
  }
}

template <class Use>
void with_comparison(const Partition& partition, Use use) {
  switch (partition.level) {
    case 1: return use(ByComparison<1>(partition));
    case 2: return use(ByComparison<3>(partition));
    case 3: return use(ByComparison<7>(partition));
    default: return use(ByComparison<15>(partition));
  }
}

// ---- scales ------------------------------------------------------------------------------------------------------

float max_scale(const Summary& summary, int bits) {
  float largest = static_cast<float>((1 << bits) - 1);
  // The outermost level must not round up to infinity.
  float most = static_cast<float>(static_cast<double>(std::numeric_limits<float>::max()) / largest * (1 - 0x1p-20));
  return std::min(summary.largest / largest, most);
}

float mean_magnitude(const Summary& summary, int64_t count) {
  return static_cast<float>(summary.magnitude / static_cast<double>(count));
}

float mean_scale(const Summary& summary, int64_t count, int bits) {
  return 1.25f * mean_magnitude(summary, count) / static_cast<float>((1 << bits) - 1);
}

// ---- rows --------------------------------------------------------------------------------------------------------

struct Request {
  int bits;
  Center center;
  Scale scale;
};

float least_squares_scale(CellTable& table, const Partition& partition) {
  double sums[MAX_BINS], counts[MAX_BINS];
  bins_of(table, partition, sums, counts);
  Fit fit;
  for (int code = 0; code <= partition.count(); ++code) {
    double odd = 2 * code - partition.count();
    fit.product += odd * sums[code];
    fit.power += odd * odd * counts[code];
  }
  return fit.scale();
}

Status balanced_row(const float* values, int64_t count, const Request& request, int threads, Output output) {
  int bits = request.bits, largest = (1 << bits) - 1;
  bool fitted = output.levels && request.scale == SCALE_LEAST_SQUARES;
  Summary summary = summarize(values, count, request.center == MEAN && bits <= PASS_BITS,
                              output.levels && request.scale == SCALE_MEAN, threads);
  if (!summary.finite) return NOT_FINITE;
  if (request.scale == SCALE_MAX) output.scale = max_scale(summary, bits);
  if (request.scale == SCALE_MEAN) output.scale = mean_scale(summary, count, bits);
  if (request.scale == SCALE_UNIT) output.scale = 1.0f;
  Partition partition;
  bool by_passes = request.center == MEAN && bits <= PASS_BITS && is_ordinary(summary.largest);
  bool few = bits <= 3;
  if (by_passes) {
    partition_by_passes(values, count, bits, summary, threads, partition);
  } else if (few) {
    CellTable table(values, count, summary.largest, true, threads);
    partition_by_cells(table, bits, request.center, partition, nullptr);
  }
  if (by_passes || few) {
    with_comparison(partition, [&](const auto& coder) {
      if (fitted) output.scale = fit(values, count, coder, threads).scale();
      write(values, count, coder, largest, output, threads);
    });
  } else {
    CellTable table(values, count, summary.largest, false, threads);
    std::unique_ptr<uint8_t[]> own(output.codes ? nullptr : new uint8_t[count]);
    uint8_t* codes = output.codes ? output.codes : own.get();
    partition_by_cells(table, bits, request.center, partition, codes);
    if (fitted) output.scale = least_squares_scale(table, partition);
    if (output.levels) write_levels(codes, count, largest, output.scale, output.levels, threads);
  }
  return DONE;
}

Status uniform_row(const float* values, int64_t count, const Request& request, int threads, Output output) {
  constexpr int REFINEMENTS = 2;
  Summary summary = summarize(values, count, false, request.scale != SCALE_MAX, threads);
  if (!summary.finite) return NOT_FINITE;
  int bits = request.bits, largest = (1 << bits) - 1;
  output.scale = request.scale == SCALE_MEAN ? mean_scale(summary, count, bits) : max_scale(summary, bits);
  if (request.scale == SCALE_LEAST_SQUARES) {
    float start = static_cast<float>(bits) * mean_magnitude(summary, count) / static_cast<float>(largest);
    output.scale = std::min(start, output.scale);
    for (int round = 0; round < REFINEMENTS; ++round)
      output.scale = fit(values, count, ByRounding(output.scale, bits), threads).scale();
  }
  write(values, count, ByRounding(output.scale, bits), largest, output, threads);
  return DONE;
}

// Rows in parallel if they are many and short, else the pieces of each row.
template <class Row>
int for_rows(Row row, const float* values, int64_t rows, int64_t length, const Request& request, int threads,
             uint8_t* codes, float* levels) {
  auto one = [&](int64_t index, int inner_threads) -> int {
    int64_t offset = index * length;
    Output output = {codes ? codes + offset : nullptr, levels ? levels + offset : nullptr, 0.0f};
    try {
      return row(values + offset, length, request, inner_threads, output);
    } catch (const std::bad_alloc&) {
      return NO_MEMORY;
    }
  };
  int status = DONE;
  if (rows < threads || length >= 8 * CHUNK || rows * length <= 2 * CHUNK) {
    // Not as a parallel region of one thread: regions within another start new threads each time.
    for (int64_t index = 0; index < rows; ++index)
      status = std::max(status, one(index, length > 2 * CHUNK ? threads : 1));
  } else {
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : status)
    for (int64_t index = 0; index < rows; ++index) status = std::max(status, one(index, 1));
  }
  return status;
}

// ---- activations -------------------------------------------------------------------------------------------------

typedef uint8_t Bytes __attribute__((vector_size(LANES)));

// Smallest and largest value, and the sum of magnitudes.
struct Seen {
  float smallest = INFINITE, largest = -INFINITE;
  double magnitude = 0;
};

template <bool WITH_MASK, bool WITH_SEEN>
Seen quantize_activations(const float* values, int64_t count, float scale, float lowest, float highest, float codes,
                          float* levels, uint8_t* mask) {
  constexpr float ROUND = 0x1p23f;  // adding it rounds to even integers at ties, as torch.round does
  Floats smallest = all(INFINITE), largest = all(-INFINITE);
  Doubles magnitude[2] = {};
  for_vectors(values, count, 0.0f, [&](Floats x, int64_t at, int lanes) {
    Floats code = (x - lowest) / scale;
    code = code < 0 ? Floats{} : code;
    code = code > codes ? all(codes) : code;
    code = (code + ROUND) - ROUND;
    Floats level = where(x != 0.0f, code * scale + lowest);
    std::memcpy(levels + at, &level, sizeof(float) * lanes);
    if constexpr (WITH_MASK) {
      Bytes inside = __builtin_convertvector((x >= lowest) & (x <= highest) & 1, Bytes);
      std::memcpy(mask + at, &inside, lanes);
    }
    if constexpr (WITH_SEEN) {
      for (int lane = lanes; lane < LANES; ++lane) x[lane] = x[0];
      smallest = x < smallest ? x : smallest;
      largest = x > largest ? x : largest;
      Floats size = reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7fffffff);
      for (int lane = lanes; lane < LANES; ++lane) size[lane] = 0;
      magnitude[0] += lower(size);
      magnitude[1] += upper(size);
    }
  });
  Seen seen;
  for (int lane = 0; lane < LANES; ++lane) {
    seen.smallest = std::min(seen.smallest, smallest[lane]);
    seen.largest = std::max(seen.largest, largest[lane]);
  }
  seen.magnitude = total(magnitude[0] + magnitude[1]);
  return seen;
}

void pass_gradients(const float* gradients, const uint8_t* mask, int64_t count, float* to) {
  for_vectors(gradients, count, 0.0f, [&](Floats x, int64_t at, int lanes) {
    Bytes inside = {};
    std::memcpy(&inside, mask + at, lanes);
    Floats passed = where(-__builtin_convertvector(inside, Ints), x);
    std::memcpy(to + at, &passed, sizeof(float) * lanes);
  });
}

}  // namespace

extern "C" {

// Rows of `length` >= 1 values each. Writes codes if `codes` is given, else levels.
int balq_balanced(const float* values, int64_t rows, int64_t length, int bits, int center, int scale, int threads,
                  uint8_t* codes, float* levels) {
  return for_rows(balanced_row, values, rows, length,
                  {bits, static_cast<Center>(center), static_cast<Scale>(scale)}, threads, codes, levels);
}

int balq_uniform(const float* values, int64_t rows, int64_t length, int bits, int scale, int threads, uint8_t* codes,
                 float* levels) {
  return for_rows(uniform_row, values, rows, length, {bits, MEAN, static_cast<Scale>(scale)}, threads, codes, levels);
}

// Levels of activations; `mask` says which lie within the interval, and `seen` gets their range (at most `spread` mean
// magnitudes), 1, and whether one is negative, or zeros if one is not finite; either may be null. count >= 1.
int balq_activation(const float* values, int64_t count, int bits, const float* range, const uint8_t* is_signed,
                    float spread, int threads, float* levels, uint8_t* mask, float* seen) {
  const float codes = static_cast<float>((1 << bits) - 1);
  const float width = *is_signed ? 2 * *range : *range;
  const float step = width / codes;
  const float scale = step < std::numeric_limits<float>::min() ? std::numeric_limits<float>::min() : step;
  const float lowest = *is_signed ? -*range : 0.0f;
  auto work = mask ? (seen ? quantize_activations<true, true> : quantize_activations<true, false>)
                   : (seen ? quantize_activations<false, true> : quantize_activations<false, false>);
  try {
    std::vector<Seen> parts(chunks(count));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count > 2 * CHUNK)
    for (int64_t part = 0; part < static_cast<int64_t>(parts.size()); ++part) {
      int64_t offset = part * CHUNK;
      parts[part] = work(values + offset, chunk_size(part, count), scale, lowest, *range, codes, levels + offset,
                         mask ? mask + offset : nullptr);
    }
    if (seen) {
      Seen all;
      for (const Seen& part : parts) {
        all.smallest = std::min(all.smallest, part.smallest);
        all.largest = std::max(all.largest, part.largest);
        all.magnitude += part.magnitude;
      }
      float mean = static_cast<float>(all.magnitude / static_cast<double>(count));
      bool finite = std::isfinite(all.magnitude);
      float largest = std::max(all.largest, -all.smallest);
      seen[0] = finite ? (spread < INFINITE ? std::min(largest, spread * mean) : largest) : 0.0f;
      seen[1] = finite ? 1.0f : 0.0f;
      seen[2] = finite && all.smallest < 0 ? 1.0f : 0.0f;
    }
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
  return DONE;
}

// Gradients where the mask is 1, else 0.
void balq_activation_gradient(const float* gradients, const uint8_t* mask, int64_t count, int threads, float* to) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count > 2 * CHUNK)
  for (int64_t part = 0; part < chunks(count); ++part) {
    int64_t offset = part * CHUNK;
    pass_gradients(gradients + offset, mask + offset, chunk_size(part, count), to + offset);
  }
}

}  // extern "C"
