//! gctr: the debug tool
