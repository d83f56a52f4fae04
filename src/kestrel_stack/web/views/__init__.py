"""The pages and addresses of kestrel-web, one blueprint to a module."""
