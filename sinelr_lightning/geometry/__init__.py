"""Shapes as triangle meshes and fields: inside and outside, surfaces, distances, pictures.

Each module is imported by its own name: they stand on libraries (igl, trimesh, skimage) that take time to load.
"""
