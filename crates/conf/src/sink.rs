//! Where warnings go.

/// Takes what an operator should read.
///
/// Texts have no severity word and no tag; the caller adds both. Control characters are still in them: the log
/// writer sanitises.
pub trait Sink {
    /// A line that the reference logs with `warning: `.
    fn warning(&mut self, text: String);

    /// A line that the reference logs without a severity word; ignored unless the sink says otherwise.
    fn info(&mut self, text: String) {
        let _ = text;
    }
}

impl Sink for Vec<String> {
    fn warning(&mut self, text: String) {
        self.push(text);
    }
}

impl<F: FnMut(String)> Sink for F {
    fn warning(&mut self, text: String) {
        self(text);
    }
}
