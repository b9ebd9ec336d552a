"""A strict reader and a minimal writer for the HDF5 files that Keras writes.

`libhdf5` follows links to other files, trusts any declared size, and can crash
on malformed metadata. This package therefore parses the file itself. It accepts
only what Keras writes and refuses everything else: superblock version 0; groups
stored as symbol tables (version 1 B-trees) or, if a name is not ASCII, as links
(in a fractal heap); contiguous arrays of numbers; string attributes.

Reference:
- [HDF5 file format](
    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html)
"""
