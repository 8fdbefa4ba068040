//! The network addresses of this machine.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// An address of this machine and the length of its network prefix, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Leading bits of the network mask.
    pub prefix: u8,
}

/// All IPv4 and IPv6 addresses, in the order in which the system lists them.
///
/// # Errors
/// `getifaddrs(3)` failed.
pub fn addresses() -> io::Result<Vec<Address>> {
    Ok(getifaddrs()?
        .filter_map(|interface| {
            let address = ip(interface.address.as_ref()?)?;
            let full = if address.is_ipv4() { 32 } else { 128 };
            let prefix = interface
                .netmask
                .as_ref()
                .and_then(ip)
                .map_or(full, |mask| match mask {
                    IpAddr::V4(mask) => mask.to_bits().leading_ones(),
                    IpAddr::V6(mask) => mask.to_bits().leading_ones(),
                });
            Some(Address {
                address,
                prefix: u8::try_from(prefix).unwrap_or(128),
            })
        })
        .collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()));
    }
    address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_masks_that_fit() {
        for Address { address, prefix } in addresses().unwrap() {
            assert!(prefix <= if address.is_ipv4() { 32 } else { 128 });
            if address.is_loopback() && address.is_ipv4() {
                assert_eq!(prefix, 8);
            }
        }
    }
}
