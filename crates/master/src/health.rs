//! How the services are, for whoever watches over the stand-in.

/// The services at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Services with a process.
    pub running: Vec<String>,
    /// Services whose process ends as soon as it is started, and which are tried again later and later.
    pub failing: Vec<String>,
    /// Services with a process whose threads have not said for some time that they are alive.
    pub stuck: Vec<String>,
}
