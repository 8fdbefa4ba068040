//! The limits of a pool of connections, and the keys that set them.
//!
//! The keys are our own, in the same file as the reference's, which does not look at keys that it does not know. A type
//! without a file has them in main.cf, with the name of the type before them (`socketmap_answer_timeout`).
//! `idle_interval` and `retry_interval` are the reference's (3.9, mysql and pgsql), for all types here.

use std::time::Duration;

use crate::config::{Config, ConfigError};

/// The limits of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// `pool_max_connections`: connections to all servers of the table together.
    pub max_connections: usize,
    /// `pool_queue_limit`: lookups that wait for a connection; more fail at once.
    pub queue: usize,
    /// `connect_timeout`: for one attempt to connect, greetings and authentication included.
    pub connect: Duration,
    /// `wait_timeout`: how long a lookup waits for a connection.
    pub wait: Duration,
    /// `answer_timeout`: from the question to the end of the answer.
    pub answer: Duration,
    /// `idle_interval`: an unused connection is closed after so long.
    pub idle: Duration,
    /// `pool_lifetime`: a connection is not used any more after so long; zero for ever.
    pub lifetime: Duration,
    /// `retry_interval`: how long a server that failed is left alone; zero where the type has no such rest.
    pub rest: Duration,
    /// `breaker_failures`: after so many failed lookups in a row all fail at once; zero for never.
    pub breaker_failures: u32,
    /// `breaker_rest`: for how long, until one lookup is let through to see.
    pub breaker_rest: Duration,
}

impl Default for Limits {
    /// What types begin with that have no reasons of their own.
    fn default() -> Self {
        Self {
            max_connections: 16,
            queue: 1000,
            connect: Duration::from_secs(10),
            wait: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            idle: Duration::from_mins(1),
            lifetime: Duration::ZERO,
            rest: Duration::from_mins(1),
            breaker_failures: 5,
            breaker_rest: Duration::from_secs(10),
        }
    }
}

const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_hours(1);

impl Limits {
    /// Reads the keys; what is not set is as in `self`, the defaults of the type.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(&self, config: &Config) -> Result<Self, ConfigError> {
        let count = |key, default: usize, min, max| {
            let default = i32::try_from(default).unwrap_or(i32::MAX);
            let number = config.int(key, default, min, max)?;
            Ok::<_, ConfigError>(usize::try_from(number).unwrap_or(0))
        };
        let time = |key, default, min| config.time(key, default, min, LONG);
        Ok(Self {
            max_connections: count("pool_max_connections", self.max_connections, 1, 1000)?,
            queue: count("pool_queue_limit", self.queue, 1, 1_000_000)?,
            connect: time("connect_timeout", self.connect, SHORT)?,
            wait: time("wait_timeout", self.wait, SHORT)?,
            answer: time("answer_timeout", self.answer, SHORT)?,
            idle: time("idle_interval", self.idle, SHORT)?,
            lifetime: time("pool_lifetime", self.lifetime, Duration::ZERO)?,
            rest: time("retry_interval", self.rest, Duration::ZERO)?,
            breaker_failures: u32::try_from(count(
                "breaker_failures",
                self.breaker_failures as usize,
                0,
                1_000_000,
            )?)
            .unwrap_or(u32::MAX),
            breaker_rest: time("breaker_rest", self.breaker_rest, SHORT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;

    use super::*;

    fn read(text: &str) -> Result<Limits, ConfigError> {
        let config = Config::parse(b"/t.cf", text.as_bytes().to_vec(), Release::V3_7)?;
        Limits::default().read(&config)
    }

    #[test]
    fn keys_and_defaults() {
        assert_eq!(read("").unwrap(), Limits::default());
        let text = "pool_max_connections = 2\npool_queue_limit = 3\nconnect_timeout = 4\nwait_timeout = 5s\n\
                    answer_timeout = 600ms\nidle_interval = 7m\npool_lifetime = 1h\nretry_interval = 0\n\
                    breaker_failures = 0\nbreaker_rest = 9\n";
        let limits = Limits {
            max_connections: 2,
            queue: 3,
            connect: Duration::from_secs(4),
            wait: Duration::from_secs(5),
            answer: Duration::from_millis(600),
            idle: Duration::from_mins(7),
            lifetime: Duration::from_hours(1),
            rest: Duration::ZERO,
            breaker_failures: 0,
            breaker_rest: Duration::from_secs(9),
        };
        assert_eq!(read(text).unwrap(), limits);
        for bad in [
            "pool_max_connections = 0",
            "pool_queue_limit = -1",
            "answer_timeout = 0",
            "wait_timeout = 2h",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
