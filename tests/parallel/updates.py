"""What one update of a network is compared by: plain SGD, in steps far beyond rounding."""

SGD = {
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.0,
    "optimizer.clip_norm": 0.0,
    "optimizer.learning_rate": 1000.0,  # far beyond the rounding of the parameters
    "optimizer.weight_decay": 0.0,
    "schedule.name": "constant",
    "schedule.warmup": "",
}
