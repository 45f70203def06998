//! What each client has of something that is limited.

use std::collections::HashMap;
use std::net::IpAddr;

/// Takes room for those alone who have any.
#[derive(Debug, Default)]
pub struct ByClient(HashMap<IpAddr, usize>);

impl ByClient {
    pub fn of(&self, client: IpAddr) -> usize {
        self.0.get(&client).copied().unwrap_or_default()
    }

    pub fn add(&mut self, client: IpAddr, amount: usize) {
        if amount > 0 {
            *self.0.entry(client).or_default() += amount;
        }
    }

    pub fn take(&mut self, client: IpAddr, amount: usize) {
        if let Some(own) = self.0.get_mut(&client) {
            *own = own.saturating_sub(amount);
            if *own == 0 {
                self.0.remove(&client);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_nothing_takes_no_room() {
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut all = ByClient::default();
        all.add(one, 3);
        all.add(other, 0);
        all.take(one, 2);
        assert_eq!([all.of(one), all.of(other)], [1, 0]);
        all.take(other, 1);
        all.take(one, 5);
        assert!(all.is_empty());
    }
}
