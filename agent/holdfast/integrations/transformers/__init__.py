"""Hugging Face transformers: its `Trainer`, saved, stopped and resumed by Holdfast instead of by its own saver.

    from holdfast.integrations.transformers import attach

    trainer = Trainer(model=model, args=args, train_dataset=data)
    attach(trainer)
    trainer.train()

attach.py          `attach`, and the methods that take the place of the Trainer's: when a boundary is passed, and what happens at a start
batches.py         stands between the training loader and the Trainer's loop
trainer_state.py   what of the Trainer belongs to the state, and how it is put back
refusals.py        what cannot be resumed exactly, and what must be there of the Trainer's insides

transformers is not imported by anything in here: whoever has a Trainer has imported it.
"""

from holdfast.integrations.transformers.attach import attach

__all__ = ["attach"]
