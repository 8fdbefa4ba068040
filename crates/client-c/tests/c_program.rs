//! A program in C, compiled against the header, linked with the shared library, with a running cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::program::skip;
use postkeep_testkit::{Implementation, Scratch, stand_in};

/// Where the library was built.
fn library() -> Result<PathBuf> {
    let running = std::env::current_exe()?;
    running
        .ancestors()
        .skip(1)
        .take(2)
        .find(|directory| directory.join("libpostkeep_scache_client.so").is_file())
        .map(Path::to_path_buf)
        .context("the shared library was not built")
}

#[test]
fn a_program_in_c_uses_the_cache() -> Result<()> {
    if Command::new("cc").arg("--version").output().is_err() {
        skip("no C compiler");
        return Ok(());
    }
    let plan = stand_in::Plan::new(Implementation::Postkeep, "scache")
        .parameter("connection_cache_ttl_limit", "600s");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = Scratch::new("c")?;
    let program = scratch.path().join("client");
    let library = library()?;
    let compiled = Command::new("cc")
        .args(["-std=c99", "-D_POSIX_C_SOURCE=200809L"])
        .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
        .arg(here.join("include"))
        .arg("-o")
        .arg(&program)
        .arg(here.join("tests/client.c"))
        .arg("-L")
        .arg(&library)
        .arg("-lpostkeep_scache_client")
        .output()?;
    ensure!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(&program)
        .arg(daemon.socket())
        .env("LD_LIBRARY_PATH", &library)
        .output()?;
    ensure!(
        output.status.success() && output.stdout == b"ok\n",
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
