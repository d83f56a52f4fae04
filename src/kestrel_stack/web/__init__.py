"""kestrel-web: see every queue of some Kestrel servers, and act on it safely."""
