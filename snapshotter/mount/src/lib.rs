//! Performs mounts with the kernel's mount API; id maps; mountinfo
