//! The two letters of a country (ISO 3166-1).

use std::fmt;

/// Two upper-case letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Country([u8; 2]);

impl Country {
    /// Any two upper-case letters: a database may use some that ISO gave to nobody.
    pub fn of(text: &str) -> Option<Self> {
        let letters: [u8; 2] = text.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters))
    }

    /// Whether it is somebody's. `XK` is: databases use it for Kosovo, which has no code of ISO.
    pub fn is_assigned(self) -> bool {
        ASSIGNED.split_ascii_whitespace().any(|own| own.as_bytes() == self.0)
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| write!(f, "{}", char::from(*letter)))
    }
}

const ASSIGNED: &str = "
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
    CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR
    GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
    KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT
    MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW
    SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ
    UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_has_249_countries_and_one_is_in_use_besides() {
        let all: Vec<_> = ASSIGNED.split_ascii_whitespace().map(|own| Country::of(own).unwrap()).collect();
        assert_eq!(all.len(), 250);
        assert!(all.is_sorted() && all.iter().all(|country| country.is_assigned()));
        assert!(["UK", "EU", "AP", "ZZ"].iter().all(|own| !Country::of(own).unwrap().is_assigned()));
        assert!(["", "K", "kp", "KPR", "é"].iter().all(|own| Country::of(own).is_none()));
    }
}
