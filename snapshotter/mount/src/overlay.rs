//! Overlay superblocks: any number of lower layers, id maps, long paths.
