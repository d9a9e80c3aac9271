"""The command ``balq``: look into checkpoints and packed files, export, verify what was exported, and write reports.

``main`` reads the command line and ``actions`` do what it says; ``sources`` gets models, checkpoints and inputs from
where it says. ``summary`` says what is in a file, and ``records`` what was recorded in training. ``exporting`` writes
files for engines, ``engines`` runs them, ``runs`` runs models, and ``comparison`` says how both differ. ``tables``
draws for the terminal, ``page`` with ``charts`` for the browser, and ``as_json`` for other programs.
"""
