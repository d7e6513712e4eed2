"""From deep to shallow: a network as a maximum of networks with one hidden layer, and other shallow
forms.
"""
