//! The Python module, with a connection cache of Postfix and with ours.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use postkeep_testkit::program::skip;
use postkeep_testkit::{Implementation, stand_in};

fn tests_pass(implementation: Implementation) -> Result<()> {
    if Command::new("python3").arg("--version").output().is_err() {
        skip("no python3");
        return Ok(());
    }
    let mut plan = stand_in::Plan::new(implementation, "scache")
        .parameter("connection_cache_ttl_limit", "600s");
    if implementation == Implementation::Postfix {
        // The reference keeps everything, and takes strings of 100 kB only.
        plan = plan.parameter("line_length_limit", "1000000");
    }
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../clients/python/tests/test_postkeep_scache.py");
    let mut command = Command::new("python3");
    command.args(["-W", "error", "-B"]).arg(script);
    if implementation == Implementation::Postfix {
        command.args(["-k", "once", "-k", "leads", "-k", "nobody"]);
    }
    let output = command.arg(daemon.socket()).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && told.contains("OK"), "{told}");
    ensure!(!told.contains("Ran 0 tests"), "{told}");
    Ok(())
}

#[test]
fn with_ours() -> Result<()> {
    tests_pass(Implementation::Postkeep)
}

#[test]
fn with_the_reference() -> Result<()> {
    tests_pass(Implementation::Postfix)
}
