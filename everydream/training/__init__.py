"""The run: processes, optimizer, loop, checkpoints, and what the user sees of it.

launch  accelerate          loop   the one loop         state   last.ckpt      runs      run folders
optim lr ema                cadence metrics display signals waits background   export    weights for other tools
"""
