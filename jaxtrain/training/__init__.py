"""HOW it is learned: state, the pure step, parallel strategies, the loop, optimizers, checkpoints."""
