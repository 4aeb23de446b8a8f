//! Compiles the messages of the Node Resource Interface from `proto/defs`, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let defs = "../../proto/defs";
    let file = "../../proto/defs/nri/pkg/api/v1alpha1/api.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], [defs])?;
    prost_build::Config::new().btree_map(["."]).include_file("pb.rs").compile_fds(descriptors)?;
    Ok(())
}
