"""What can be done to queues and servers, planned, confirmed, performed and accounted for."""
