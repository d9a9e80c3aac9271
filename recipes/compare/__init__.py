"""Compare methods of quantization under one recipe, at several widths and from several seeds.

Run:  python -m recipes.compare all recipes/digits_cnn.yaml --bits 2/2 4/4 --seeds 5 --results FOLDER
      python -m recipes.compare table --results FOLDER

Where a line belongs: ``cells`` says what can be run, ``history`` watches a training, ``training`` runs one cell,
``scheduler`` many of them and ``runs`` those that are missing, ``records`` keeps what came out, ``summary`` condenses
it, ``tables`` and ``figures`` show it. The methods are the files in ``recipes/methods``.
"""
