"""The one training loop that train, adapt and finetune share."""
