#![cfg(feature = "table")]
use tcmi_call::table::{self, Class};

#[test]
fn every_number_has_its_kernel_name() {
    for (nr, row) in table::rows() {
        match syscalls::Sysno::new(nr as usize) {
            Some(sysno) => assert_eq!(row.name, sysno.name(), "number {nr}"),
            None => assert!(
                nr == 335 || nr == 336 || (337..=423).contains(&nr) || nr > 460,
                "{nr} {}",
                row.name
            ),
        }
    }
    assert!(table::ROWS > 467);
}

#[test]
fn most_calls_are_served() {
    let served = table::rows().filter(|(_, r)| !matches!(r.class, Class::Refused(_))).count();
    assert!(served >= 240, "only {served}");
}

#[test]
fn numbers_outside_have_no_row() {
    assert!(table::row(table::ROWS as u32).is_none());
    assert!(table::row(table::X32_BIT).is_none());
}
