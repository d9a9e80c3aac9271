"""The command ``balq``: look into checkpoints and packed files, pack, and verify what was packed.

``main`` reads the command line; ``sources`` gets models, checkpoints and inputs from where it says; ``summary`` says
what is in a file and ``comparison`` how two models differ; ``tables`` draws both.
"""
