//! Names in a process's `stats` file, which is lines of `NAME VALUE`.
//!
//! Only those that a program reads are here; the file holds more.

/// Bytes of memory that the move in progress has to send; absent before it is known.
pub const BYTES_TOTAL: &str = "bytes-total";
/// Bytes of memory that it has sent.
pub const BYTES_SENT: &str = "bytes-sent";

/// The number that stands for `name`. None: absent, or not a number.
pub fn number(stats: &str, name: &str) -> Option<u64> {
    let values = stats.lines().filter_map(|line| line.split_once(' '));
    values.into_iter().find(|(key, _)| *key == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let stats = "bytes-total-ever 9\nbytes-total 7\nbytes-sent x\n";
        assert_eq!(number(stats, BYTES_TOTAL), Some(7));
        assert_eq!(number(stats, BYTES_SENT), None);
        assert_eq!(number(stats, "freeze-us"), None);
    }
}
