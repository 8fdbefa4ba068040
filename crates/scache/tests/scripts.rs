//! Runs the scripts in `vectors/scache`.
#![expect(clippy::disallowed_methods, reason = "the scripts are files")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use postkeep_scache::Cache;

/// Runs a script and writes it down again with the answers that were given.
fn run(script: &str) -> String {
    const INFALLIBLE: &str = "writing to a string cannot fail";
    let mut cache = Cache::default();
    let mut now = Duration::from_secs(1000);
    let mut sessions = 0;
    let mut transcript = String::new();
    for line in script.lines().filter(|line| !line.starts_with('=')) {
        writeln!(transcript, "{line}").expect(INFALLIBLE);
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let words: Vec<&str> = line
            .split(' ')
            .map(|word| if word == "-" { "" } else { word })
            .collect();
        if let Some(answer) = answer(&words, &mut cache, &mut now, &mut sessions) {
            writeln!(transcript, "= {answer}").expect(INFALLIBLE);
        }
    }
    transcript
}

fn answer(
    words: &[&str],
    cache: &mut Cache<usize>,
    now: &mut Duration,
    sessions: &mut usize,
) -> Option<String> {
    let seconds = |word: &str| Duration::from_secs(word.parse().expect("a number of seconds"));
    let shown = |text: &[u8]| match std::str::from_utf8(text).expect("scripts are UTF-8") {
        "" => "-".to_owned(),
        text => text.to_owned(),
    };
    match *words {
        ["save_dest", ttl, destination, property, endpoint] => {
            cache
                .save_destination(
                    *now,
                    seconds(ttl),
                    destination.as_bytes(),
                    property.as_bytes(),
                    endpoint.as_bytes(),
                )
                .expect("far below the limits");
            None
        }
        ["save_endp", ttl, endpoint, property] => {
            cache
                .save_endpoint(
                    *now,
                    seconds(ttl),
                    endpoint.as_bytes(),
                    property.as_bytes(),
                    *sessions,
                )
                .expect("far below the limits");
            *sessions += 1;
            None
        }
        ["find_dest", label] => Some(
            cache
                .find_destination(*now, label.as_bytes(), &mut |_| None)
                .map_or_else(
                    || "miss".to_owned(),
                    |found| {
                        format!(
                            "dest {} endp {} session {}",
                            shown(&found.destination_property),
                            shown(&found.endpoint_property),
                            found.handle
                        )
                    },
                ),
        ),
        ["find_endp", label] => Some(
            cache
                .find_endpoint(*now, label.as_bytes(), &mut |_| None)
                .map_or_else(
                    || "miss".to_owned(),
                    |found| {
                        format!(
                            "endp {} session {}",
                            shown(&found.endpoint_property),
                            found.handle
                        )
                    },
                ),
        ),
        ["sleep", time] => {
            *now += seconds(time);
            let ended = cache.expire(*now);
            let mut closed: Vec<usize> = ended.iter().map(|ended| ended.handle).collect();
            closed.sort_unstable();
            (!closed.is_empty()).then(|| {
                closed.iter().fold("closed".to_owned(), |text, session| {
                    format!("{text} {session}")
                })
            })
        }
        ["status"] => {
            let counted = cache.take_statistics();
            Some(format!(
                "{}/{} {}/{} {}/{}/{}",
                counted.destination_hits,
                counted.destination_misses,
                counted.endpoint_hits,
                counted.endpoint_misses,
                counted.destinations,
                counted.endpoints,
                counted.sessions
            ))
        }
        _ => panic!("no such command: {words:?}"),
    }
}

#[test]
fn scripts_answer_as_written_down() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/scache");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "scache")
        {
            let script = std::fs::read_to_string(&path).unwrap();
            assert_eq!(run(&script), script, "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 7, "only {count} scripts found");
}
