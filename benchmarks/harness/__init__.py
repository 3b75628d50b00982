"""What the engine's questions share: contenders in processes of their own, rounds in rotated order, figures, floors. Nothing of one question lives here."""
