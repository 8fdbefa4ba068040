//! What is made of repeated measurements.

/// The middle of the values; of an even number, the upper of the two in the middle.
///
/// # Panics
/// When there are none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A count as a number to reckon with.
#[expect(clippy::cast_precision_loss, reason = "far below 2 to the 52nd")]
pub(crate) fn as_float(number: u64) -> f64 {
    number as f64
}

/// The lowest and the highest of the values.
pub(crate) fn spread(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_heed_an_outlier() {
        let values = vec![3.0, 1.0, 1000.0, 2.0, 2.5];
        assert_eq!(spread(&values), (1.0, 1000.0));
        assert!((median(values) - 2.5).abs() < 1e-9);
    }
}
