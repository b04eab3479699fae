"""What is optimised: one file for each objective.

Each gives the module it trains (`build`), the batch of any step (`batches`) and the loss (`loss`).
"""
