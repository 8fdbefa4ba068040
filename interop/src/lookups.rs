//! Single lookups in a lookup table server, in the words of the protocol.

use anyhow::{Context as _, Result};
use postkeep_testkit::attributes::{list, show};
use postkeep_testkit::peer::Peer;

/// A `lookup` request, as clients before 3.11 send it.
pub fn request(table: &str, key: &str) -> Vec<u8> {
    list(&[
        ("request", "lookup"),
        ("table", table),
        ("flags", "0"),
        ("key", key),
    ])
}

/// Asks, and shows the reply.
///
/// # Errors
/// When the conversation breaks.
pub fn lookup(peer: &mut Peer, table: &str, key: &str) -> Result<String> {
    let reply = peer
        .exchange(&request(table, key))
        .with_context(|| format!("{table} {key}"))?;
    Ok(show(&reply))
}
