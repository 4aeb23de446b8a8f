//! Commands that print or write documents: a first configuration, what the runtime can do.

use super::args::{Args, Flag};
use super::{Failure, Global};

pub(super) const SPEC: &[Flag] = &[Flag::value("bundle").short('b'), Flag::switch("rootless")];

/// Writes `config.json` of a shell to start from; never over an existing one.
pub(super) fn spec(_: &Global, args: &Args) -> Result<u8, Failure> {
    let path = std::path::Path::new(args.get("bundle").unwrap_or(".")).join("config.json");
    let failed = |source| Failure::io(format!("{}", path.display()), source);
    let mut file = std::fs::File::create_new(&path).map_err(failed)?;
    std::io::Write::write_all(&mut file, include_bytes!("config.json")).map_err(failed)?;
    Ok(0)
}

/// Prints what the runtime can do (runtime-spec, "Features Structure").
pub(super) fn features(_: &Global, _: &Args) -> Result<u8, Failure> {
    println!("{:#}", gantry_runtime::features());
    Ok(0)
}
