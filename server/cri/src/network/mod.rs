//! Networks of pods: CNI plug-ins, and the built-in bridge where there is no CNI configuration.
