"""What rows are likely: deep autoregressive networks that learn a table's distribution.

Source: Gregor, Danihelka, Mnih, Blundell, Wierstra, "Deep AutoRegressive Networks", ICML 2014
(arXiv 1310.8499).
"""
