"""The command ``balq``: look into checkpoints and packed files, export, and verify what was exported.

``main`` reads the command line and ``actions`` do what it says; ``sources`` gets models, checkpoints and inputs from
where it says. ``summary`` says what is in a file. ``exporting`` writes files for engines, ``engines`` runs them,
``runs`` runs models, and ``comparison`` says how both differ. ``tables`` draws for the terminal, and ``as_json`` for
other programs.
"""
