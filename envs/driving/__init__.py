"""Driving: random street scenes and the data sets made from them."""
