"""Carries out studies: runs, one after the other or shared between processes."""
