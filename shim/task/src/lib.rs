//! containerd-shim-gantry-v1: holds one container and is the truth about it
