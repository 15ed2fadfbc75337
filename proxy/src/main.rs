//! `cacheyard-proxy <config.toml>`, or `--version`

use std::path::PathBuf;
use std::process::ExitCode;

use cacheyard_proxy::{config::Config, server, stream, world::World};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(path), None) = (args.next(), args.next()) else {
        eprintln!("usage: cacheyard-proxy <config.toml>");
        return ExitCode::from(2);
    };
    if path == "--version" {
        println!("cacheyard-proxy {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let path = PathBuf::from(path);
    let read = Config::read(&path).and_then(Config::ask_password).and_then(|config| {
        let tls = config.tls.as_ref().map(stream::acceptor).transpose()?;
        Ok((config, tls))
    });
    let (config, tls) = match read {
        Ok(read) => read,
        Err(error) => {
            eprintln!("cacheyard-proxy: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    match local.block_on(&runtime, server::run(World::new(path, config, tls))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cacheyard-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}
