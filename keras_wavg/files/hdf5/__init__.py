"""The part of HDF5 that Keras writes, read strictly and written plainly.

`libhdf5` follows links out of a file, believes any declared size, and can be
made to crash by crafted structure. So this reads the file by itself, and only
what Keras writes: superblock 0; groups as symbol tables (B-trees, version 1)
or, where a name is not ASCII, as links (a fractal heap); contiguous arrays of
numbers; attributes that are strings. All else is refused.

The format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""
