//! Links, addresses, nftables and DNS for instances
