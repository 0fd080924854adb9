"""A fleet of la-trt servers on Ray Serve: replicas behind a relay that loses no request."""
