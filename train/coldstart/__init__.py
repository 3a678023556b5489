"""python -m train.coldstart: a policy to start from."""
