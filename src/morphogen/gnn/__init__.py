"""Deep graph networks on shallow samples: what a node is, is read from a small graph around it, by
a network of any depth.

Source: Zeng, Zhang, Xia, Srivastava, Malevich, Kannan, Prasanna, Jin, Chen, "Decoupling the Depth
and Scope of Graph Neural Networks", NeurIPS 2021 (arXiv 2201.07858), whose first version is "Deep
Graph Neural Networks with Shallow Subgraph Samplers" (arXiv 2012.01380).
"""
