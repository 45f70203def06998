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
