"""What needs a GPU: the tables of the paper, trained, and the cost of quantizing.

Run:  python -m benchmarks.gpu --data-root FOLDER --results FOLDER --budget 580     everything, what matters most first
      python -m benchmarks.gpu.cifar10 --data FOLDER --results FOLDER --budget 580  one table
      python -m benchmarks.gpu.cost --results FOLDER --budget 580                   time, memory and launches
      python -m benchmarks.gpu.tables --results FOLDER                              tables from the records

Every program stops by itself after its budget of seconds, or may be killed, and goes on when it is called again.
``--dry-run`` goes through all of it on a CPU, with two batches of each run.

Where a line belongs: ``study`` says how the tables have their cells run, by the scheduler of ``recipes.compare``, and
``penn_treebank``, ``cifar10``, ``imagenette`` and ``ablations`` what each compares; their methods are in
``recipes/methods`` or, if no other program needs them, in ``methods``. ``cost`` has what ``quantizers``, ``steps`` and
``kernels`` measure recorded, one group of cases at a time. ``published`` keeps what others report, and ``tables`` sets
it beside the records. ``equalized`` is a quantizer for the ablations alone.
"""
