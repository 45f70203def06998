//! Owns what runs. Start is the first reload.
