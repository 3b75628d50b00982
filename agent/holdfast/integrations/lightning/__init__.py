"""PyTorch Lightning, under either of its names: a callback that saves, stops and resumes `Trainer.fit`.

    from holdfast.integrations.lightning import HoldfastCallback

    trainer = Trainer(max_epochs=3, callbacks=[HoldfastCallback()])
    trainer.fit(model, loader)

callback.py     the callback: when a boundary is passed, and what happens at a start
feed.py         stands between the training loaders and Lightning's loop
trainer_state.py   what of the Trainer belongs to the state, and how it is put back
refusals.py     what cannot be resumed exactly, and what must be there of Lightning's insides

Lightning is not imported by anything but this package, which imports the name of it that the script uses.
"""

from holdfast.integrations.lightning.callback import HoldfastCallback

__all__ = ["HoldfastCallback"]
