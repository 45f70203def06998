//! The fixed table that combines the two verdicts (SPEC V7), for flows whose name was found.

use super::{DomainVerdict, InspectionType, IpVerdict};

/// Whether a flow passes, given both verdicts.
pub fn combine(kind: InspectionType, ip: IpVerdict, domain: DomainVerdict) -> bool {
    let [on_allow, on_block, on_none] = row(kind, ip);
    match domain {
        DomainVerdict::Allow => on_allow,
        DomainVerdict::Block => on_block,
        DomainVerdict::None => on_none,
    }
}

/// Whether the name, rather than the address, is why [`combine`] says what it says.
///
/// A name on a list decides where the verdict would be the same for any address, unless the address alone settles it.
/// A name on no list decides only where it turns the verdict of the address.
pub fn name_decides(kind: InspectionType, ip: IpVerdict, domain: DomainVerdict) -> bool {
    let by_ip_alone = ip == IpVerdict::Allow;
    if domain == DomainVerdict::None {
        return combine(kind, ip, domain) != by_ip_alone;
    }
    let name_settles = combine(kind, IpVerdict::Allow, domain) == combine(kind, IpVerdict::Block, domain);
    let [on_allow, on_block, on_none] = row(kind, ip);
    let address_settles = on_allow == on_block && on_block == on_none;
    name_settles && !address_settles
}

/// Columns: domain Allow, Block, None.
const fn row(kind: InspectionType, ip: IpVerdict) -> [bool; 3] {
    use InspectionType::*;
    use IpVerdict::*;
    const A: bool = true;
    const B: bool = false;
    match (kind, ip) {
        (PreferIp, Allow) => [A, A, A],
        (PreferIp, Block) => [B, B, B],
        (PreferDomain, Allow) => [A, B, A],
        (PreferDomain, Block) => [A, B, A],
        (PreferBoth, Allow) => [A, B, A],
        (PreferBoth, Block) => [B, B, B],
        (Explicit, Allow) => [A, B, A],
        (Explicit, Block) => [A, B, B],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_matrix_says_what_the_table_says() {
        let mut cells = 0;
        for (kind, ip, domain, cell) in cells_of(&table()) {
            assert_eq!(combine(kind, ip, domain), cell == "A", "{kind}, IP {ip}, domain {domain}");
            cells += 1;
        }
        assert_eq!(cells, 24);
    }

    #[test]
    fn every_cell_names_the_side_that_decided() {
        for (kind, ip, domain, cell) in cells_of(table()["reasons"].as_table().unwrap()) {
            assert_eq!(name_decides(kind, ip, domain), cell == "name", "{kind}, IP {ip}, domain {domain}");
        }
    }

    #[test]
    fn where_the_address_gives_the_reason_it_gave_the_verdict() {
        for (kind, ip, domain, cell) in cells_of(&table()) {
            if !name_decides(kind, ip, domain) {
                assert_eq!(cell == "A", ip == IpVerdict::Allow, "{kind}, IP {ip}, domain {domain}");
            }
        }
    }

    fn table() -> toml::Table {
        include_str!("../../tests/data/verdicts.toml").parse().unwrap()
    }

    fn cells_of(table: &toml::Table) -> Vec<(InspectionType, IpVerdict, DomainVerdict, String)> {
        use InspectionType::*;
        let mut cells = Vec::new();
        for kind in [PreferIp, PreferDomain, PreferBoth, Explicit] {
            for ip in [IpVerdict::Allow, IpVerdict::Block] {
                let row = table[kind.as_str()][ip.as_str()].as_array().unwrap();
                let domains = [DomainVerdict::Allow, DomainVerdict::Block, DomainVerdict::None];
                assert_eq!(row.len(), domains.len());
                for (domain, cell) in domains.into_iter().zip(row) {
                    cells.push((kind, ip, domain, cell.as_str().unwrap().to_owned()));
                }
            }
        }
        cells
    }
}
