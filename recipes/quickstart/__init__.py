"""The program to run first: float, uniform and balanced networks on handwritten digits, in a minute and with a report.

Run:  python -m recipes.quickstart [--output DIR]

Where a line belongs: ``methods`` lists what is compared, ``training`` and ``timing`` run one of them, ``workers`` runs
many at once, ``study`` puts these together, ``results`` is what comes out, ``summary`` condenses it,
``table`` shows it in the terminal, ``figures`` and ``page`` in the report, ``output`` guards the folder.
"""
