//! What a cache says that it takes, and what the process takes; alone in its process.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use postkeep_cache::{Answer, Cache, Settings};

/// Memory that the process really has, in bytes.
fn resident() -> usize {
    let status = std::process::Command::new("cat")
        .arg(format!("/proc/{}/statm", std::process::id()))
        .output()
        .unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn memory_is_as_bounded_as_it_says() {
    const MOST: usize = 8 << 20;
    let cache = Cache::<()>::new(&Settings {
        max_entries: usize::MAX / 2,
        max_bytes: MOST,
        ttl: Duration::from_secs(10),
        negative_ttl: Duration::from_secs(10),
        stale_ttl: Duration::ZERO,
        retry_delay: Duration::ZERO,
        refresh: 0,
    });
    let before = resident();
    let mut lengths = BTreeSet::new();
    // Small entries first, then large ones, and small ones again.
    for (round, length) in [0, 4000, 0, 700].into_iter().enumerate() {
        for number in 0..100_000_u32 {
            if length > 1000 && number > 20_000 {
                break;
            }
            let key = [
                &[b'a' + u8::try_from(round).unwrap()][..],
                &number.to_be_bytes(),
            ]
            .concat();
            let value = vec![b'v'; length];
            cache.put(
                Duration::ZERO,
                Duration::ZERO,
                0,
                &key,
                Ok(Answer::Found(&value)),
            );
        }
        let counts = cache.counts();
        assert!(counts.bytes <= MOST as u64);
        assert!(counts.bytes > MOST as u64 / 2, "{counts:?}");
        lengths.insert(counts.entries);
        let grown = resident().saturating_sub(before);
        println!(
            "{} entries, {} bytes: the process has grown by {grown}",
            counts.entries, counts.bytes
        );
        // What the allocator keeps of what was given back is not ours.
        assert!(grown < MOST + MOST / 2 + (4 << 20), "{grown}");
    }
    assert!(lengths.len() > 1);
}
